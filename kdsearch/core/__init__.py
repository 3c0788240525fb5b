"""What everything stands on: errors, values, maths, files, memory; imports nothing above."""
