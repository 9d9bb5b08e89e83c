"""Data-loading workers beside the process that reads from them."""

import multiprocessing
import socket
import sys
import time
from multiprocessing.connection import Client
from multiprocessing.resource_sharer import DupFd

from yolox_plugin.core.workers import Announcements


def _hand_over_to_nobody(output, report):
    """In a worker: its readers leave before they are greeted, and before they have said what they want."""
    sys.stderr = output
    Announcements().follow(0)
    address, _ = DupFd(0)._id
    for greeted in (False, True):
        with socket.socket(socket.AF_UNIX) as reader:
            reader.connect(address)
            if greeted:
                reader.recv(1)
    with Client(address, authkey=multiprocessing.current_process().authkey) as reader:  # served after those
        reader.send((-1, 0))
        while "KeyError" not in report.read_text():
            time.sleep(0.01)


def test_a_worker_reports_its_errors_but_not_that_its_reader_left(tmp_path):
    """As the process does that Ctrl-C stops while it takes over a tensor."""
    report = tmp_path / "stderr"
    with report.open("w") as output:
        worker = multiprocessing.get_context("fork").Process(target=_hand_over_to_nobody, args=(output, report))
        worker.start()
        worker.join(30)
        worker.kill()
    assert worker.exitcode == 0
    assert "KeyError: -1" in report.read_text()
    assert "BrokenPipe" not in report.read_text() and "EOFError" not in report.read_text()
