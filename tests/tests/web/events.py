"""A stream of events that comes again when it ends, as browsers' EventSource does.

    events.py URL USER PASSWORD CA|-

Says where it is at the first event, says that the stream has ended, and comes again; at the first event of
that one it goes. Not let in, it says so, waits as long as it is told, and tries again.
"""

import base64
import http.client
import json
import ssl
import sys
import time
import urllib.parse

# Times that it lets itself be turned away.
ATTEMPTS = 50


def connect(url, user, password, ca):
    address = urllib.parse.urlsplit(url)
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    for _ in range(ATTEMPTS):
        if address.scheme == "https":
            context = ssl.create_default_context(cafile=ca)
            connection = http.client.HTTPSConnection(address.netloc, context=context, timeout=60)
        else:
            connection = http.client.HTTPConnection(address.netloc, timeout=60)
        path = address.path + (f"?{address.query}" if address.query else "")
        headers = {"Authorization": f"Basic {login}", "Accept": "text/event-stream"}
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        if answer.status == 200:
            return answer
        print("status", answer.status, flush=True)
        connection.close()
        time.sleep(float(answer.headers.get("Retry-After", 0.2)))
    sys.exit("never let in")


def events(answer):
    try:
        for line in answer:
            if line.startswith(b"data: "):
                yield json.loads(line[len(b"data: "):])
    except (http.client.HTTPException, ConnectionError):
        # Cut, not ended: all the same to an EventSource.
        pass


def main():
    said = False
    for event in events(connect(*sys.argv[1:])):
        if not said:
            print("at", event["backend"], "for", event["user"], flush=True)
        said = True
    print("ended", flush=True)
    event = next(events(connect(*sys.argv[1:])))
    print("at", event["backend"], "for", event["user"], flush=True)


main()
