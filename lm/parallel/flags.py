"""Recommended compiler flags."""


def set_recommended(environment):
    pass
