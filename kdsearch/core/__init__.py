"""What everything stands on: values, errors, maths, files, memory, signals; imports nothing above."""
