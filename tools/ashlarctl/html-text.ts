/** HTML by template: what is interpolated is escaped, unless it is HTML already. So nothing has to be remembered. */

/** Text that is HTML: made by {@link html}, or of a constant that is no text of anyone else. */
export class Html {
  readonly text: string;

  constructor(text: string) {
    this.text = text;
  }
}

export type HtmlPart = string | number | Html | readonly Html[];

/** ``html`<p>${anything}</p>` ``: strings are escaped, lists of Html are joined. */
export function html(strings: TemplateStringsArray, ...parts: readonly HtmlPart[]): Html {
  let text = strings[0] ?? '';
  for (const [index, part] of parts.entries()) text += htmlOf(part) + (strings[index + 1] ?? '');
  return new Html(text);
}

function htmlOf(part: HtmlPart): string {
  if (part instanceof Html) return part.text;
  if (typeof part === 'object') return part.map(({ text }) => text).join('');
  return escapeText(String(part));
}

/** For element content and quoted attributes. Control and direction characters become a visible sign. */
function escapeText(text: string): string {
  const entities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' };
  return text.replace(/[^\P{C}\n]/gu, '\ufffd').replace(/[&<>"']/g, (character) => entities[character] ?? character);
}
