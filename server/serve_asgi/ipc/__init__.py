"""What two processes of one server speak: channel, link, frames, scoreboard, control protocol. No policy."""
