"""The control plane of a migration: states, capabilities, parameters, both sides."""
