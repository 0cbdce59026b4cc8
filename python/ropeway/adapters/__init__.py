"""ropeway in the place of what inference engines and training frameworks bring along, one file for each. None of them
imports its engine before it is used."""
