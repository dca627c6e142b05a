"""Modules that several commands share: params, paths, data, keys, the engine."""
