# Style as tests (label lint), and the target that compiles every header alone.
