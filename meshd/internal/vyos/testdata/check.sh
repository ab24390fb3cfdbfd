#!/bin/sh
# meshd-check: sends what is for the mesh into the tunnel that works.
# Printed by meshd vyos --check-script for r30a and r30b.
#
# Each check pings the far address of every tunnel. A tunnel that worked is
# given up after 2 checks without an answer, and one that was given up counts
# again after 3 checks with one, so that a poor line does not make the routes
# jump. The first tunnel that works gets the routes; if none does, they stay.
#
# The routes are the kernel's own, with metric 1 and protocol 122, beside the
# static ones of the router's configuration (metric 20), which they outrank.
# Nothing is written to the configuration. It needs sh, ip and ping, and root.
#
#   -r N    checks in one run, at least (1)
#   -t N    check again and again for N seconds (0)
#   -s N    seconds between checks (10)
#   -d DIR  where verdicts are kept between runs (/run/meshd-check)
#   -v      print every verdict
#   -u      take the routes away and end

set -u
PATH=/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL
umask 077

# Device and far address, the preferred one first.
tunnels='vtun1,10.90.0.1 vtun2,10.91.0.1'
prefixes='192.168.10.0/24 192.168.20.0/24 2001:db8:10::/64'
metric=1
protocol=122
fall=2
rise=3

rounds=1
period=0
pause=10
state=/run/meshd-check
verbose=
remove=
while getopts r:t:s:d:vu option; do
	case $option in
	r) rounds=$OPTARG ;;
	t) period=$OPTARG ;;
	s) pause=$OPTARG ;;
	d) state=$OPTARG ;;
	v) verbose=1 ;;
	u) remove=1 ;;
	*) exit 2 ;;
	esac
done
case :$rounds:$period:$pause: in
*::* | *[!0-9:]*)
	echo "meshd-check: -r, -t and -s want numbers" >&2
	exit 2
	;;
esac

say() {
	echo "meshd-check: $*" >&2
	if command -v logger >/dev/null 2>&1; then
		logger -t meshd-check "$*" >/dev/null 2>&1
	fi
	return 0
}

# family PREFIX|ADDRESS: the option of ip for its IP version
family() {
	case $1 in
	*:*) echo -6 ;;
	*) echo -4 ;;
	esac
}

# judge DEVICE ADDRESS: one check; the verdict is in $verdict
judge() {
	six=
	case $2 in
	*:*) six=-6 ;;
	esac
	answer=down
	need=$fall
	# shellcheck disable=SC2086
	if ping $six -n -q -c 3 -i 0.3 -W 2 -I "$1" "$2" >/dev/null 2>&1; then
		answer=up
		need=$rise
	fi
	verdict=
	streak=0
	if [ -r "$state/$1" ]; then
		read -r verdict streak <"$state/$1" || :
	fi
	case $streak in
	'' | *[!0-9]*) streak=0 ;;
	esac
	case $verdict in
	up | down) ;;
	*) verdict=$answer ;; # the first check decides
	esac
	if [ "$answer" = "$verdict" ]; then
		streak=0
	else
		streak=$((streak + 1))
		# Without its device a tunnel has lost at once.
		if [ "$streak" -ge "$need" ] || ! ip link show dev "$1" >/dev/null 2>&1; then
			verdict=$answer
			streak=0
			say "$1 is $verdict ($2)"
		fi
	fi
	if ! { echo "$verdict $streak" >"$state/$1.new" && mv "$state/$1.new" "$state/$1"; } 2>/dev/null; then
		say "cannot write $state/$1; each check decides alone"
		verdict=$answer
	fi
	if [ -n "$verbose" ]; then
		echo "$1 $2 $answer, counts as $verdict"
	fi
}

# device PREFIX: the device that our route to it has, if any
device() {
	# shellcheck disable=SC2046
	set -- $(ip "$(family "$1")" route show exact "$1" proto $protocol 2>/dev/null)
	while [ $# -gt 1 ]; do
		if [ "$1" = dev ]; then
			echo "$2"
			return
		fi
		shift
	done
}

# place DEVICE: all routes there
place() {
	for prefix in $prefixes; do
		if [ "$(device "$prefix")" = "$1" ]; then
			continue
		fi
		if ip "$(family "$prefix")" route replace "$prefix" dev "$1" metric $metric proto $protocol; then
			say "$prefix goes to $1"
		else
			say "cannot send $prefix to $1"
			failed=1
		fi
	done
}

# outranked: name routes that win over ours
outranked() {
	for prefix in $prefixes; do
		ip "$(family "$prefix")" route show exact "$prefix" | while read -r line; do
			case "$line " in
			*" metric "*) ;;
			*) say "another route wins because it has no metric, give it one such as 20: $line" ;;
			esac
		done
	done
}

# withdraw WHICH: take away our routes that are not in the list, or all of them
withdraw() {
	for version in -4 -6; do
		ip $version route show proto $protocol 2>/dev/null | while read -r target rest; do
			case $1:" $prefixes " in
			others:*" $target "*) continue ;;
			esac
			ip $version route del "$target" metric $metric proto $protocol && say "no route to $target (was: $rest)"
		done
	done
}

if [ -n "$remove" ]; then
	withdraw all
	rm -rf "$state"
	exit 0
fi

if ! mkdir -p "$state"; then
	say "cannot make $state"
	exit 1
fi
# The kernel lets go of the lock when the last process that has it ends.
if command -v flock >/dev/null 2>&1; then
	exec 9>"$state/lock"
	flock -n 9 || exit 0 # the run before is still at it
fi

# over: whether the time of this run is up, or the clock was set back
over() {
	now=$(date +%s)
	[ $((now + pause)) -ge $((begin + period)) ] || [ "$now" -lt "$begin" ]
}

failed=
checks=0
begin=$(date +%s)
withdraw others
while :; do
	best=
	for tunnel in $tunnels; do
		judge "${tunnel%%,*}" "${tunnel#*,}"
		if [ "$verdict" = up ] && [ -z "$best" ]; then
			best=${tunnel%%,*}
		fi
	done
	if [ -n "$best" ]; then
		place "$best"
	fi
	checks=$((checks + 1))
	if [ "$checks" -ge "$rounds" ] && over; then
		break
	fi
	sleep "$pause"
done
outranked
[ -z "$failed" ]
