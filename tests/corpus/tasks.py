"""Task functions for the tests of executors."""

import os
import signal
import time

from lm import storage
from lm.errors import LmError


def double(arguments, out, report):
    report(1)
    storage.write_atomic(out + ".txt", arguments["text"] * 2)
    return {"characters": 2 * len(arguments["text"])}


def refuse(arguments, out, report):
    raise LmError("the file is damaged.")


def stumble(arguments, out, report):
    raise ValueError("a bug")


def die(arguments, out, report):
    os.kill(os.getpid(), signal.SIGKILL)


def spoil(arguments, out, report):
    double(arguments, out, report)
    raise LmError("no more room.")


def die_once(arguments, out, report):
    if storage.create(out + ".seen", ""):
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


def where(arguments, out, report):
    import ray

    time.sleep(0.5)
    return {"node": ray.get_runtime_context().get_node_id()}
