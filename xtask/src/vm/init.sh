#!/bin/busybox sh
# The first process of a test machine: runs /plan or /script, then switches it off.
# The kernel's console is the first serial port; what is said here goes to the
# second one. Lines that begin with @@vm are for xtask (transcript.rs); a test may write one
# there, too ($LOCKWATCH_HOST).
export PATH=/bin HOME=/tmp TMPDIR=/tmp LC_ALL=C RUST_BACKTRACE=0
/bin/busybox mkdir -p /proc /sys /dev /tmp /run
/bin/busybox --install -s /bin 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
exec </dev/null >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 raw -echo

off() {
    printf '\n@@vm off %s\n' "$1"
    # QEMU drops what the port has not sent yet.
    sleep 0.3
    xtask vm-off $((16 + $1))
    sleep 0.5
    poweroff -f
}

# Hundredths of seconds since boot.
now() {
    read -r up _ </proc/uptime
    echo "${up%.*}${up#*.}"
}

mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /dev/shm && mount -t tmpfs tmpfs /dev/shm
ip link set lo up
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "cannot load $module"
done
printf '\n@@vm boot %s %s\n' "$(now)" "$(uname -r)"

. /environment
if [ -f /script ]; then
    sh /script
    printf '\n@@vm script %s\n' $?
    off 0
fi

while read -r fact limit command; do
    printf '\n@@vm fact %s\n' "$fact"
    # shellcheck disable=SC2086 # a command and its arguments
    timeout -s KILL "$limit" $command </dev/null
    printf '\n@@vm told %s\n' $?
done </facts

failed=0
while read -r program test limit; do
    printf '\n@@vm test %s %s\n' "$program" "$test"
    begun=$(now)
    timeout -s KILL "$limit" "/bin/$program" --exact "$test" --include-ignored --show-output --test-threads=1
    code=$?
    [ $code = 0 ] || failed=1
    printf '\n@@vm end %s %s\n' $code $(($(now) - begun))
done </plan
off $failed
