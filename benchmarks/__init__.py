"""Benchmarks of ubatch beside other batching libraries, bare loops and closed forms.

Run `python -m benchmarks` from the checkout's root (it needs the extra `bench`); `--help` tells the rest. Contenders
live in processes of their own, each with a directory of its own to import from, and take turns, A B C A B C …, so
that whatever else the machine does meets them alike. Raw samples go to `results/*.json`; the table and the plots are
made from those files alone.
"""
