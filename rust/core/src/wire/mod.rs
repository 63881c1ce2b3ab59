//! Bytes and meaning of the migration stream. Pure: no sockets, no guest memory.
