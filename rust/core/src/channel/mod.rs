//! Byte transports behind one face: tcp, unix, fd, exec, file.
