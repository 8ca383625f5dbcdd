"""Reads lockwatch's reports of a recording with parsers that are not lockwatch's.

usage: check.py LOCKWATCH SCHEMA RECORDING...

json: the jsonschema package, against the generated schema. dot: graphviz. folded: the
rules of flame-graph tools. perfetto: perfetto's own protobuf classes.
"""

import json
import subprocess
import sys
import xml.etree.ElementTree as xml

import jsonschema
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

STALL_FOUND = 1


def report(lockwatch, recording, form):
    done = subprocess.run(
        [lockwatch, "report", recording, "--format", form], capture_output=True
    )
    assert done.returncode == STALL_FOUND, f"exit code {done.returncode}: {done.stderr}"
    assert done.stdout, "nothing was written"
    return done.stdout


def check_json(text, schema):
    found = json.loads(text)
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.FormatChecker()
    )
    validator.validate(found)
    assert found["coverage"]["source"] == "recording"
    # A validator that lets everything pass would pass, too.
    broken = dict(found, locks="none")
    assert not validator.is_valid(broken), "the schema does not look at locks"
    return found


def check_dot(text, found):
    drawn = subprocess.run(["dot", "-Tsvg"], input=text, capture_output=True)
    assert drawn.returncode == 0 and not drawn.stderr, drawn.stderr
    svg = xml.fromstring(drawn.stdout)
    words = [node.text for node in svg.iter() if node.text]
    for lock in found["locks"]:
        assert lock["name"] in words, f"{lock['name']} is not drawn: {words}"
        for holder in lock["holders"]:
            name = f"{holder['comm']}[{holder['tid']}]"
            assert name in words, f"{name} is not drawn: {words}"


def check_folded(text, found):
    locks = {lock["name"] for lock in found["locks"]}
    for line in text.decode().splitlines():
        stack, weight = line.rsplit(" ", 1)
        assert int(weight) >= 0, line
        frames = stack.split(";")
        assert frames[0] in locks and len(frames) > 3 and all(frames), line


def check_perfetto(content, found):
    trace = Trace.FromString(content)
    # What the reader does not know would be kept aside, and be missing here.
    assert trace.SerializeToString() and not unknown(trace), "fields of no known number"
    tracks, begun, open_slices, arrows = {}, {}, {}, 0
    before = 0
    for packet in trace.packet:
        if packet.HasField("track_descriptor"):
            track = packet.track_descriptor
            assert track.uuid not in tracks and track.name
            assert not track.parent_uuid or track.parent_uuid in tracks
            tracks[track.uuid] = track
        if not packet.HasField("track_event"):
            continue
        event = packet.track_event
        assert packet.timestamp >= before, "packets are in the order of time"
        before = packet.timestamp
        assert event.track_uuid in tracks
        verb = event.name.split(" ")[0]
        for flow in event.flow_ids:
            assert verb == "holds", "an arrow begins at a holder"
            begun[flow] = packet.timestamp
        for flow in event.terminating_flow_ids:
            assert verb in ("waits", "held"), "an arrow ends at a waiter"
            assert begun.pop(flow) <= packet.timestamp
            arrows += 1
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            assert not open_slices.get(event.track_uuid), "slices of a track overlap"
            open_slices[event.track_uuid] = event.name
        elif event.type == TrackEvent.TYPE_SLICE_END:
            assert open_slices.pop(event.track_uuid)
    assert not open_slices and not begun
    locks = [track.name for track in tracks.values() if not track.parent_uuid]
    held = {lock["name"] for lock in found["locks"] if lock["holders"]}
    assert held & set(locks), f"{held} have no tracks among {locks}"
    assert arrows > 0, "no arrow from a holder to a waiter"


def unknown(message):
    from google.protobuf.unknown_fields import UnknownFieldSet

    if len(UnknownFieldSet(message)):
        return True
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if any(map(unknown, [value] if hasattr(value, "ListFields") else value)):
            return True
    return False


def main():
    lockwatch, schema, *recordings = sys.argv[1:]
    with open(schema, encoding="utf-8") as file:
        schema = json.load(file)
    assert recordings, "no recordings"
    for recording in recordings:
        found = check_json(report(lockwatch, recording, "json"), schema)
        check_dot(report(lockwatch, recording, "dot"), found)
        check_folded(report(lockwatch, recording, "folded"), found)
        check_perfetto(report(lockwatch, recording, "perfetto"), found)
        print(f"{recording}: json, dot, folded and perfetto are what they should be")


main()
