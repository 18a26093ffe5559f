/** Every port of a node, and who may reach it. Service manifests repeat theirs in `listens`; a test compares. */

/** The cluster API (curator): TCP, from anywhere, mutual TLS. */
export const CLUSTER_API_PORT = 7400;
/** The node API (agent): TCP, from anywhere, mutual TLS. */
export const NODE_API_PORT = 7401;
/** etcd's client API: TCP on 127.0.0.1 only, mutual TLS. */
export const ETCD_CLIENT_PORT = 2379;
/** etcd's peer port: TCP on 127.0.0.1 only, mutual TLS. */
export const ETCD_PEER_PORT = 2380;
/** Where a DHCP client gets its answers: UDP, from port 67. */
export const DHCP_CLIENT_PORT = 68;
export const DHCP_SERVER_PORT = 67;
/** Where time servers answer: UDP. */
export const NTP_PORT = 123;
