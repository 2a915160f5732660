"""Tests of the files in ``deploy/``, and of runs that are started as Ray jobs."""
