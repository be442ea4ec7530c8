"""How the processes of one server communicate: channel, link, frames, scoreboard, control protocol. No policy."""
