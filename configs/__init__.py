"""Plans that ship with the package and run as they are; `astrofed train --mode NAME` takes the mode's own from here."""
