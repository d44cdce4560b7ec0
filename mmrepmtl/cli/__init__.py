"""The commands of ``mmrepmtl``, one module each: ``parse_args(argv, prog)`` and ``main(argv, prog)``."""
