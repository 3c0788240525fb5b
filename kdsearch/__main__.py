"""python -m kdsearch"""

from kdsearch.commands.cli import main

main()
