"""Math-Verify as a process: one case per line in, one verdict per line out.

Read by tools/compare_graders.py, which ends the process where Math-Verify's
own timeouts (signals, which wait for long operations of C code) do not hold.
"""

import json
import logging
import sys
import time

from math_verify import parse, verify

WRAPS = {"boxed": "\\boxed{%s}", "dollar": "$%s$"}


class Timeouts(logging.Handler):
    """Math-Verify answers "wrong" after a timeout and says so in its log only."""

    count = 0

    def emit(self, record):
        self.count += record.getMessage().startswith("Timeout")


def main():
    wrap, limit = WRAPS[sys.argv[1]], int(sys.argv[2])
    timeouts = Timeouts()
    log = logging.getLogger("math_verify")
    log.addHandler(timeouts)
    log.propagate = False
    # The first call compiles grammars, which is no latency of a verdict.
    verify(parse(wrap % "x+1", parsing_timeout=limit), parse("so \\boxed{1+x}", parsing_timeout=limit))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        pred = case["pred"] if case["response"] else wrap % case["pred"]
        timeouts.count = 0
        start = time.perf_counter()
        gold = parse(wrap % case["gold"], parsing_timeout=limit)
        answer = parse(pred, parsing_timeout=limit)
        correct = verify(gold, answer, timeout_seconds=limit)
        seconds = time.perf_counter() - start
        print(json.dumps({"correct": bool(correct), "timeout": timeouts.count > 0, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
