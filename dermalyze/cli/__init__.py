"""The command line: one module per topic; heavy imports wait until a command needs them."""
