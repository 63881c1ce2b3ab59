"""Helpers for tests of emulators: model guest, fake peer, fault injector."""
