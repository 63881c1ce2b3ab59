"""QMP commands and HMP texts; the transport is in the core."""
