"""Calendars by the library that CalDAV programs in Python use.

    calendars.py URL USER PASSWORD CA|- make CALENDAR        makes a calendar
    calendars.py URL USER PASSWORD CA|- add CALENDAR SUMMARY  adds an event to it
    calendars.py URL USER PASSWORD CA|- list                  says CALENDAR: SUMMARY, ... for each
    calendars.py URL USER PASSWORD CA|- delete CALENDAR       deletes it

From the URL alone: it asks there where the person's calendars are.
"""

import sys
import uuid

import caldav

EVENT = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//Mailshift//tests//EN
BEGIN:VEVENT
UID:{uid}
DTSTAMP:20260101T000000Z
DTSTART:20260102T100000Z
DTEND:20260102T110000Z
SUMMARY:{summary}
END:VEVENT
END:VCALENDAR
"""


def name_of(calendar):
    return calendar.get_properties([caldav.dav.DisplayName()]).get("{DAV:}displayname", "?")


def main():
    url, user, password, ca, command, *words = sys.argv[1:]
    client = caldav.DAVClient(url, username=user, password=password, ssl_verify_cert=ca if ca != "-" else True)
    principal = client.principal()
    calendars = {name_of(calendar): calendar for calendar in principal.calendars()}
    if command == "make":
        principal.make_calendar(name=words[0])
    elif command == "add":
        calendars[words[0]].save_event(EVENT.format(uid=uuid.uuid4(), summary=words[1]))
    elif command == "list":
        for name, calendar in sorted(calendars.items()):
            summaries = [event.vobject_instance.vevent.summary.value for event in calendar.events()]
            print(f"{name}: {', '.join(sorted(summaries))}")
    elif command == "delete":
        calendars[words[0]].delete()
    else:
        sys.exit(f"what is {command}?")


main()
