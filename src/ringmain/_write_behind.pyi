__pyx_capi__: dict[str, object]  # what _tls finds its functions by
