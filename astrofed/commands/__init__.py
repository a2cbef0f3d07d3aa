"""The commands, one module a group. Only typer is imported up here: `astrofed --help` has to answer at once."""
