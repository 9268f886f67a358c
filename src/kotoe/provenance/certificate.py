"""A certificate for trials of C2PA: it signs as the specification asks, and nobody trusts it.

C2PA's profile: X.509 v3, P-256 with SHA-256, not issued by itself, digitalSignature as its only use, an extended use
that is allowed for signing (e-mail protection here, as c2pa's own examples have it), key identifiers of both sides. So
there are two: a root, whose private key is forgotten at once, and the signer's, which it issued.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kotoe.errors import UserError
from kotoe.provenance.c2pa import CERTIFICATE, KEY

ROOT = "root.pem"  # what a verifier may be told to trust
NAME = "Kotoe trial"
DAYS = 365
LONGEST_NAME = 64  # of X.509


def make(folder: str | Path, name: str = NAME, *, days: int = DAYS) -> Path:
    """Write certificate.pem (the chain), key.pem (mode 0600, not encrypted) and root.pem into a folder.

    name: of the organisation, as those who verify see it. days: how long it is valid. Raises UserError where one of the
    files is there already: a key can't be had back.
    """
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable():
        raise UserError(f"name {name!r}", allowed=f"1 to {LONGEST_NAME} printable characters")
    if not 1 <= days <= 3650:
        raise UserError(f"days {days}", allowed="1 to 3650")
    place = Path(folder)
    for file in (CERTIFICATE, KEY, ROOT):
        if (place / file).exists():
            raise UserError(f"{place / file} is there already", allowed="a folder without one", hint="Take another one")
    chain, key, root = _pair(name, timedelta(days=days))
    try:
        place.mkdir(parents=True, exist_ok=True)
        for file, content, mode in ((KEY, key, 0o600), (CERTIFICATE, chain, 0o644), (ROOT, root, 0o644)):
            handle = os.open(place / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with open(handle, "wb") as out:
                out.write(content)
    except OSError as error:
        raise UserError(f"can't write in {place}: {error.strerror}", allowed="a writable folder") from error
    return place


def _pair(name: str, valid: timedelta) -> tuple[bytes, bytes, bytes]:
    """PEM of the chain, of the signer's key and of the root."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError as error:
        raise UserError("certificates need cryptography", hint="pip install 'kotoe[provenance]'") from error

    def called(what: str) -> Any:
        parts = [(NameOID.ORGANIZATION_NAME, name), (NameOID.COMMON_NAME, what)]
        return x509.Name([x509.NameAttribute(oid, text) for oid, text in parts])

    def uses(*wanted: str) -> Any:
        every = (
            *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
            *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
        )
        return x509.KeyUsage(**{use: use in wanted for use in every})

    now = datetime.now(UTC)
    above, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def begun(subject: str, public: Any) -> Any:
        return (
            x509.CertificateBuilder()
            .subject_name(called(subject))
            .issuer_name(called("trial root"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))  # clocks differ
            .not_valid_after(now + valid)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    root = (
        begun("trial root", above.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(uses("key_cert_sign", "crl_sign"), critical=True)
        .sign(above, hashes.SHA256())
    )
    signer = (
        begun("trial signer", own.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(uses("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above.public_key()), critical=False)
        .sign(above, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key = own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return signer.public_bytes(pem) + root.public_bytes(pem), key, root.public_bytes(pem)
