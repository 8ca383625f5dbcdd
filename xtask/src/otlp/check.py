"""Pushes over OTLP to receivers that are not lockwatch's, and looks at what they have.

usage: check.py PROGRAM STORE DOCS

PROGRAM is the example push_otlp, STORE the server of VictoriaMetrics, DOCS
docs/opentelemetry.md. All is on loopback, and all that is started here is ended here.
"""

import sys

import flaky
import victoria
import whole


def main():
    program, store, docs = sys.argv[1:]
    for check in (*whole.CHECKS, *flaky.CHECKS):
        tell(check.__name__, check(program))
    tell("a_real_store_tells_the_same", victoria.check(program, store, docs))


def tell(name, note):
    print(f"{name}: {note or 'as it should be'}", flush=True)


main()
