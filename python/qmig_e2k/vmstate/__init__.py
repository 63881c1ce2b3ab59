"""Descriptions of device state, and the engine that saves and loads them."""
