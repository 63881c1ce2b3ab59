"""The e2k machine: CPU, devices and machine types."""
