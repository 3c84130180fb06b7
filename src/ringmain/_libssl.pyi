HAS_LIBSSL: bool
__pyx_capi__: dict[str, object]  # what _tls_receiver finds its functions by

def send_close_notify(sslobj: object) -> bool: ...
