"""Tests of the project itself: architecture, public API, messages, docs, distribution."""
