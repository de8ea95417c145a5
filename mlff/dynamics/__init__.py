"""Equations of motion for many systems at once, and what a run of them keeps.

``phase`` is the state, ``integrators`` and ``barostats`` move it, ``noise`` and
``schedules`` are what they draw and aim at, ``limits`` stops single systems, ``record``
keeps frames. :func:`mlff.run_md` puts them together.
"""
