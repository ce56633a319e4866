"""The demo: its manifest and inputs, its run, its page."""
