"""The certificate authorities that connections to other machines trust."""

import os
import ssl

import truststore


def create_client_context() -> ssl.SSLContext:
    """Trust the system's certificate authorities, or those in SSL_CERT_FILE and SSL_CERT_DIR.

    Raises:
        OSError: these cannot be read; the message states the reason.
    """
    file, folder = (os.environ.get(name) or None for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
    if file is None and folder is None:
        return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        return ssl.create_default_context(cafile=file, capath=folder)
    except OSError as error:
        raise OSError(f"SSL_CERT_FILE: {file} cannot be read: {error.strerror or error}; use a PEM file") from error
