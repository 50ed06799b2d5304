"""Members whose model and caches are in another process, on this machine or another one."""
