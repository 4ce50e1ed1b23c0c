"""A session of Python's own modules: says where it is, waits until the server ends it, and comes again.

    session.py LISTENER PORT CA USER SECRET MECHANISM
"""

import base64
import hashlib
import hmac
import imaplib
import poplib
import smtplib
import socket
import ssl
import sys
import time

HOST = "localhost"
# Between two questions, so long that a session counts as quiet.
PAUSE = 0.3
# Not the address that the services connect from.
CLIENT = "127.0.0.9"
FROM, TO = "ann@example.org", "bob@example.org"
ENDS = (imaplib.IMAP4.abort, poplib.error_proto, smtplib.SMTPServerDisconnected, OSError)


class Scram:
    """RFC 5802 without channel binding; the server must prove that it knows the password, too."""

    def __init__(self, digest, user, password):
        self.digest = digest
        self.password = password.encode()
        self.first = f"n={user},r=rOprNGfwEbeRWgbNEkqO"
        self.expected = None

    def __call__(self, challenge=None):
        if not challenge:
            return "n,," + self.first
        told = dict(part.split("=", 1) for part in challenge.decode().split(","))
        if self.expected:
            assert base64.b64decode(told["v"]) == self.expected, "this is not the server"
            return ""
        assert told["r"].startswith(self.first.split("r=")[1])
        salted = hashlib.pbkdf2_hmac(
            self.digest, self.password, base64.b64decode(told["s"]), int(told["i"])
        )
        without_proof = "c=biws,r=" + told["r"]
        signed = ",".join((self.first, challenge.decode(), without_proof)).encode()
        key = self.mac(salted, b"Client Key")
        signature = self.mac(hashlib.new(self.digest, key).digest(), signed)
        self.expected = self.mac(self.mac(salted, b"Server Key"), signed)
        proof = bytes(a ^ b for a, b in zip(key, signature))
        return f"{without_proof},p={base64.b64encode(proof).decode()}"

    def mac(self, key, text):
        return hmac.new(key, text, self.digest).digest()


def exchange(mechanism, user, secret):
    """What answers the server's challenges, the first of which is empty."""
    if mechanism.startswith("SCRAM-"):
        return Scram(mechanism.removeprefix("SCRAM-").lower().replace("-", ""), user, secret)
    said = {
        "PLAIN": f"\0{user}\0{secret}",
        "XOAUTH2": f"user={user}\x01auth=Bearer {secret}\x01\x01",
        "OAUTHBEARER": f"n,a={user},\x01auth=Bearer {secret}\x01\x01",
    }[mechanism]
    return lambda challenge=None: said


class Imap:
    def __init__(self, listener, port, tls, user, secret, mechanism):
        if listener == "imaps":
            self.server = imaplib.IMAP4_SSL(HOST, port, ssl_context=tls)
        else:
            self.server = imaplib.IMAP4(HOST, port)
            self.server.starttls(tls)
        if mechanism == "LOGIN":
            self.server.login(user, secret)
        else:
            answers = exchange(mechanism, user, secret)
            self.server.authenticate(mechanism, lambda challenge: answers(challenge).encode())

    def where(self):
        self.server.select(readonly=True)
        _, parts = self.server.fetch("1", "(BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
        return parts[0][1].decode().strip().removeprefix("Subject: ")

    def ask(self):
        self.server.noop()


class Pop3:
    def __init__(self, listener, port, tls, user, secret, _mechanism):
        if listener == "pop3s":
            self.server = poplib.POP3_SSL(HOST, port, context=tls)
        else:
            self.server = poplib.POP3(HOST, port)
            self.server.stls(tls)
        self.server.user(user)
        self.server.pass_(secret)

    def where(self):
        _, lines, _ = self.server.top(1, 0)
        subjects = [line for line in lines if line.startswith(b"Subject: ")]
        return subjects[0].decode().removeprefix("Subject: ")

    def ask(self):
        self.server.noop()


class Submission:
    def __init__(self, listener, port, tls, user, secret, mechanism):
        if listener == "submissions":
            self.server = smtplib.SMTP_SSL(HOST, port, context=tls)
        else:
            self.server = smtplib.SMTP(HOST, port)
            self.server.starttls(context=tls)
        self.server.ehlo()
        if mechanism == "LOGIN":
            self.server.user, self.server.password = user, secret
            self.server.auth(mechanism, self.server.auth_login)
        else:
            self.server.auth(mechanism, exchange(mechanism, user, secret))

    def where(self):
        """After the login it is the owner who greets."""
        self.server.sendmail(FROM, [TO], f"From: <{FROM}>\r\nSubject: by smtplib\r\n\r\nText\r\n")
        _, greeting = self.server.ehlo()
        return "at " + greeting.decode().split(".")[0]

    def ask(self):
        code, text = self.server.noop()
        if code == 421:
            raise smtplib.SMTPServerDisconnected(text)


class ManageSieve:
    """RFC 5804; Python has no module for it."""

    def __init__(self, _listener, port, tls, user, secret, mechanism):
        self.socket = socket.create_connection((HOST, port), source_address=(CLIENT, 0))
        self.lines = self.socket.makefile("rb")
        self.until_ok()
        self.ask("STARTTLS")
        self.socket = tls.wrap_socket(self.socket, server_hostname=HOST)
        self.lines = self.socket.makefile("rb")
        self.until_ok()
        answers = exchange(mechanism, user, secret)
        self.send(f'AUTHENTICATE "{mechanism}" "{encoded(answers())}"')
        while challenge := self.challenge():
            self.send(f'"{encoded(answers(challenge))}"')

    def send(self, line):
        self.socket.sendall(line.encode() + b"\r\n")

    def challenge(self):
        """Base64 in a literal or in quotes; None at the verdict, which may have a last one."""
        line = self.lines.readline().strip()
        if line.startswith(b"{"):
            line = self.lines.readline().strip()
        if line.startswith(b"OK"):
            return None
        assert not line.startswith((b"NO", b"BYE")), line
        return base64.b64decode(line.strip(b'"'))

    def until_ok(self):
        while not (line := self.lines.readline()).startswith(b"OK"):
            if not line or line.startswith((b"NO", b"BYE")):
                raise ConnectionError(line)

    def where(self):
        self.ask('PUTSCRIPT "session" "keep;"')
        return "put"

    def ask(self, command="NOOP"):
        self.send(command)
        self.until_ok()


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def main(listener, port, ca, user, secret, mechanism):
    tls = ssl.create_default_context(cafile=ca)
    kinds = {"imap": Imap, "pop3": Pop3, "submission": Submission, "managesieve": ManageSieve}
    kind = kinds[listener.removesuffix("s")]
    log_in = lambda: kind(listener, int(port), tls, user, secret, mechanism)
    session = log_in()
    print(session.where(), flush=True)
    try:
        while True:
            session.ask()
            time.sleep(PAUSE)
    except ENDS:
        pass
    print(log_in().where(), flush=True)


main(*sys.argv[1:])
