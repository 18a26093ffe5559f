/** The capabilities a service may ever be given (capabilities(7)); what is not here needs a change that is seen. */
export const capabilityNames = ['CAP_NET_ADMIN', 'CAP_NET_BIND_SERVICE', 'CAP_NET_RAW', 'CAP_SYS_TIME'] as const;
