"""Driver: certificates for a group without a CA of its own: made once, given to all members.

The CA's key is thrown away as soon as it has signed the one certificate, so nobody can make another.
"""

import datetime
from pathlib import Path
from typing import Final

from atoll.config import atomic_write
from atoll.errors import InvalidConfig, SaveFailed
from atoll.net.tls import Tls

DAYS: Final = 3650


def make(folder: Path, days: int = DAYS) -> Tls:
    """Write ca.pem, cert.pem and key.pem (which only its owner can read) into a folder.

    InvalidConfig: one of them is there already, or the library `cryptography` is missing. SaveFailed.
    """
    made = Tls(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")
    for path in (made.ca, made.cert, made.key):
        if Path(path).exists():
            raise InvalidConfig(f"{path} exists, and somebody may need it: choose another folder for new certificates")
    ca, cert, key = _pem(days)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveFailed(f"can't make {folder}: {error.strerror}; choose another folder") from None
    atomic_write(Path(made.key), key, mode=0o600)
    atomic_write(Path(made.cert), cert)
    atomic_write(Path(made.ca), ca)
    return made


def _pem(days: int) -> tuple[bytes, bytes, bytes]:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ImportError:
        raise InvalidConfig(
            "making certificates needs the library cryptography:  pip install 'atoll[tls]'  (using them does not)"
        ) from None
    now = datetime.datetime.now(datetime.UTC)

    def certificate(
        subject: x509.Name, key: ec.EllipticCurvePrivateKey, issuer: x509.Name, signed_by: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        public = signed_by.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        )

    def usage(signs_certificates: bool) -> x509.KeyUsage:
        return x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=signs_certificates,
            crl_sign=signs_certificates,
            encipher_only=False,
            decipher_only=False,
        )

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    ca_name, member_name = name(f"atoll group CA {x509.random_serial_number():x}"[:48]), name("atoll group member")
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = (
        certificate(ca_name, ca_key, ca_name, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(signs_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    both_ways = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    cert = (
        certificate(member_name, key, ca_name, ca_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both_ways), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("member.atoll.invalid")]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return ca.public_bytes(pem), cert.public_bytes(pem), private
