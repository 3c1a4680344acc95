import os
import signal
import unittest

# A shell that starts this in the background has Ctrl-C ignored, by all that is started from here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

IS_LONG = "TEST_DAYS" in os.environ  # As .ci/run sets it: every case, and each in full.
slow = unittest.skipUnless(IS_LONG, "takes seconds: .ci/run runs it")
