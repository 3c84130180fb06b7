import ssl

HAS_LIBSSL: bool
__pyx_capi__: dict[str, object]  # what _read_ahead and _tls find its functions by

def set_ciphersuites(context: ssl.SSLContext, names: str) -> bool: ...
def require_any_certificate(context: ssl.SSLContext) -> bool: ...
