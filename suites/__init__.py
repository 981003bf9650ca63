"""What is asked: the tasks, their data, and their official scorers."""
