/** When a certificate that renews itself does so. */

/** What X509Certificate has too. */
export interface CertificateLife {
  readonly validFromDate: Date;
  readonly validToDate: Date;
}

/** True from the middle of its life on, and whenever the clock has left its span, as after the time was set. */
export function isDueForRenewal({ validFromDate, validToDate }: CertificateLife, now: Date): boolean {
  const middle = (validFromDate.getTime() + validToDate.getTime()) / 2;
  return now.getTime() > middle || now < validFromDate;
}

export function isValidAt({ validFromDate, validToDate }: CertificateLife, now: Date): boolean {
  return now >= validFromDate && now <= validToDate;
}
