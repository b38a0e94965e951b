"""A hub on site: the coordinator, a door for objects and a broker in one box, for devices elsewhere.

authority  certificates for the hub and its devices     broker  Mosquitto as a child, or one that is there
enrol      who belongs to the fleet, and who not        door    objects over HTTPS, by signed address
signing    addresses that say what they allow           exchange  one request at the door
serve      the process that has all of it
"""
