"""Generation: requests in, tokens out. Start at engine.py; scheduler.py decides, runner.py computes."""
