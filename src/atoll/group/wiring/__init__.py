"""Interface: the sockets of a group: of a member, of its helper, of the master."""
