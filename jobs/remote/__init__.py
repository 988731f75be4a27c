"""Jobs on a Ray cluster that is elsewhere: submitted, listed, followed and stopped through its dashboard."""
