//! QMP transport: sockets, framing, JSON, events; the rest is handed to Python.
