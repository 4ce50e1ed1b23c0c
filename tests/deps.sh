#!/bin/sh
# Installs what `make try`, `make test` or `make bench` needs and this machine lacks, while a command runs:
#
#     tests/deps.sh try|test|bench|build [command [argument]...]
#
# Prints the list and asks first, unless CI is set or YES=1. Nothing that runs is touched, nothing is
# removed, no daemon is started, and none of the new ones is left to start at boot. The command (the
# build) runs while apt works; only what the command itself needs is installed before it.

set -eu
export LC_ALL=C

NEEDED_RUST=1.95
POLICY=/usr/sbin/policy-rc.d
MARK='# written by mailshift tests/deps.sh'
PATH="$PATH:/usr/sbin:/sbin:$HOME/.cargo/bin"
export PATH

say() { printf 'deps: %s\n' "$*"; }
fail() { printf 'deps: %s\n' "$*" >&2; exit 1; }

# ---- What is needed: the packages on the left, unless the files on the right are there -------------

# $1: packages. The rest: commands, or globs of absolute paths, all of which must be there.
need() {
    packages=$1
    shift
    for wanted; do
        case $wanted in
            /*) for path in $wanted; do [ -e "$path" ] && continue 2; done ;;
            *) command -v "$wanted" >/dev/null 2>&1 && continue ;;
        esac
        missing="$missing $packages"
        return
    done
}

# What cargo needs: a linker and a C compiler, for the cryptography and SQLite that are built in.
needs_of_build() {
    need 'gcc libc6-dev' cc /usr/include/stdio.h
}

needs_of_try() {
    need 'dovecot-core dovecot-imapd dovecot-lmtpd' \
        dovecot '/usr/lib/dovecot/imap /usr/libexec/dovecot/imap' \
        '/usr/lib/dovecot/lmtp /usr/libexec/dovecot/lmtp'
    need sqlite3 sqlite3
    need curl curl
}

needs_of_test() {
    needs_of_try
    needs_of_servers
    needs_of_clients
    need util-linux setpriv setsid
}

# Servers that the tests start for themselves.
needs_of_servers() {
    for protocol in pop3 submission; do
        need "dovecot-${protocol}d" \
            "/usr/lib/dovecot/$protocol-login /usr/libexec/dovecot/$protocol-login"
    done
    need 'dovecot-managesieved dovecot-sieve' \
        '/usr/lib/dovecot/managesieve-login /usr/libexec/dovecot/managesieve-login' sievec
    need postgresql '/usr/lib/postgresql/*/bin/initdb /usr/bin/initdb'
    need pgbouncer pgbouncer
    need postfix postfix '/usr/lib/postfix/sbin/smtpd /usr/libexec/postfix/smtpd'
    # It asks the table by it.
    need postfix-pgsql '/usr/lib/postfix/postfix-pgsql.so /usr/lib64/postfix/postfix-pgsql.so'
    need openssl openssl
    need fail2ban fail2ban-regex
    # What administrators have made of Postfix' log.
    need pflogsumm pflogsumm
    # The web: calendars, files, and what is written here on top of a module.
    need radicale /usr/bin/radicale
    need xandikos /usr/bin/xandikos
    need nginx nginx
    need python3-aiohttp /usr/lib/python3/dist-packages/aiohttp/__init__.py
}

# Mail programs and others as people use them.
needs_of_clients() {
    need isync mbsync
    need fetchmail fetchmail
    need msmtp msmtp
    # It speaks TLS by a module that it does not depend on.
    need 'swaks libnet-ssleay-perl' swaks '/usr/lib/*/perl5/*/Net/SSLeay.pm'
    # It wants a terminal, which script is.
    need 'neomutt bsdutils' neomutt script
    need sieve-connect sieve-connect
    need python3 /usr/bin/python3
    need python3-caldav /usr/lib/python3/dist-packages/caldav/__init__.py
    need python3-websockets /usr/lib/python3/dist-packages/websockets/__init__.py
    # Ubuntu's is a snap, which has to be there.
    grep -q '^ID=ubuntu' /etc/os-release 2>/dev/null ||
        need chromium '/usr/bin/chromium /usr/bin/chromium-browser /snap/bin/chromium /usr/bin/google-chrome'
}

# ---- Cyrus, whose packages exclude Dovecot's: unpacked beside the system, never installed -------------

CYRUS=$(dirname "$0")/../target/cyrus

unpack_cyrus() {
    # Its web server is the last that was added to what is unpacked.
    if [ "$what" != test ] || [ -e "$CYRUS/usr/lib/cyrus/bin/httpd" ]; then return 0; fi
    command -v apt-get >/dev/null 2>&1 || fail "Cyrus is unpacked from Debian packages, and there is no apt-get"
    # What apt would install for it, which is what this machine lacks.
    packages=$(apt-get -s -q install --no-install-recommends cyrus-imapd cyrus-pop3d cyrus-caldav \
        sasl2-bin 2>/dev/null |
        sed -n 's/^Inst \([^ ]*\) .*/\1/p')
    [ -n "$packages" ] || fail 'apt-get knows no cyrus-imapd: run apt-get update as root'
    say 'unpacking Cyrus under target/, beside the system; nothing is installed'
    mkdir -p "$(dirname "$CYRUS")"
    unpacked=$(mktemp -d "$CYRUS.XXXXXX")
    mkdir "$unpacked/debs"
    # shellcheck disable=SC2086 # a list of words
    (cd "$unpacked/debs" && apt-get -q download $packages >log 2>&1) ||
        { tail -n 5 "$unpacked/debs/log" >&2; rm -rf "$unpacked"; fail 'the packages of Cyrus cannot be fetched'; }
    for deb in "$unpacked"/debs/*.deb; do dpkg -x "$deb" "$unpacked"; done
    rm -r "$unpacked/debs"
    chmod 755 "$unpacked"
    rm -rf "$CYRUS"
    mv "$unpacked" "$CYRUS"
}

# The peers that are measured, besides Dovecot and Postfix.
needs_of_bench() {
    needs_of_test
    need haproxy haproxy
    need 'nginx libnginx-mod-mail' nginx '/usr/lib/nginx/modules/ngx_mail_module.so'
}

# ---- Rust --------------------------------------------------------------------------------------------

check_rust() {
    rustup_hint='install it from https://rustup.rs (the rustc package of Debian and Ubuntu is too old)'
    command -v cargo >/dev/null 2>&1 || fail "Rust $NEEDED_RUST or newer is needed and there is no cargo: $rustup_hint"
    # Not in this directory's parents alone: a toolchain file would be honoured here as in the build.
    version=$(rustc --version 2>/dev/null | cut -d' ' -f2)
    [ -n "$version" ] || fail "rustc does not run: $(rustc --version 2>&1 | head -n1)"
    lower=$(printf '%s\n%s\n' "$NEEDED_RUST" "${version%%-*}" | sort -V | head -n1)
    [ "$lower" = "$NEEDED_RUST" ] ||
        fail "Rust $NEEDED_RUST or newer is needed, this is $version: run \`rustup update stable\`, or $rustup_hint"
}

check_components() {
    for component in fmt clippy; do
        cargo "$component" --version >/dev/null 2>&1 && continue
        name=$component
        [ "$component" = fmt ] && name=rustfmt
        command -v rustup >/dev/null 2>&1 || fail "cargo $component is missing: install $name"
        say "adding the Rust component $name"
        rustup component add "$name" >/dev/null 2>&1 || fail "rustup component add $name failed"
    done
}

# ---- Installing ----------------------------------------------------------------------------------------

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Fails with what to do where this cannot be done here.
check_may_install() {
    command -v apt-get >/dev/null 2>&1 ||
        fail "these Debian packages, or what they are called here, are missing:$missing"
    by_hand="run as root: apt-get install --no-install-recommends$missing"
    [ "$(id -u)" = 0 ] && return
    command -v sudo >/dev/null 2>&1 || fail "not root, and there is no sudo; $by_hand"
    sudo -n true 2>/dev/null && return
    [ -t 0 ] && [ -z "${CI:-}" ] && sudo -v && return
    fail "not root, and sudo wants a password; $by_hand"
}

ask() {
    say "missing here:$missing"
    say "apt-get will install them without recommended packages; no daemon is started"
    case $missing in
        *' dovecot-core '* | *' dovecot-core') ;;
        *' dovecot-'*) say 'the Dovecot that is here will speak what these add, too, when it is started the next time' ;;
    esac
    if [ -n "${CI:-}" ] || [ "${YES:-}" = 1 ]; then return; fi
    [ -t 0 ] || fail 'nobody here to ask: set YES=1 to install them'
    printf 'deps: install them? [Y/n] '
    read -r answer
    case $answer in
        '' | y | Y | yes) ;;
        *) fail 'nothing was installed' ;;
    esac
}

# Forbids package scripts to start daemons. A policy that is there already is the administrator's.
write_policy() {
    if [ -e "$POLICY" ] && ! grep -qF "$MARK" "$POLICY"; then
        "$POLICY" mailshift-probe start >/dev/null 2>&1 || return 0
        starts_daemons=1
        return 0
    fi
    policy_is_ours=1
    printf '#!/bin/sh\n%s\nexit 101\n' "$MARK" | as_root sh -c "cat >$POLICY && chmod 755 $POLICY"
}

clean_up() {
    # Not before apt has ended: without the policy it would start what it installs.
    if [ -n "${installing:-}" ] && kill -0 "$installing" 2>/dev/null; then
        say 'waiting for apt to end'
        wait "$installing" || true
    fi
    if [ -n "${policy_is_ours:-}" ]; then as_root rm -f "$POLICY"; fi
    rm -rf "$work"
}

# In a session of its own, so that Ctrl-C does not leave half-installed packages.
apt() {
    as_root setsid -w env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 NEEDRESTART_MODE=l \
        LC_ALL=C apt-get -q -y \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" </dev/null >>"$work/log" 2>&1
}

# shellcheck disable=SC2086 # $1 is a list of words
apt_install() {
    apt install --no-install-recommends --no-remove --no-upgrade $1
}

install() {
    # Postfix asks what it is for; a later start by hand must not listen on public ports.
    case " $1 " in
        *' postfix '*)
            command -v debconf-set-selections >/dev/null 2>&1 &&
                echo 'postfix postfix/main_mailer_type select Local only' |
                as_root debconf-set-selections >>"$work/log" 2>&1
            ;;
    esac
    before=$(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' 2>/dev/null | sed -n 's/^ii *//p')
    # The package lists are fetched only where they are missing or too old to be of use.
    apt_install "$1" || { apt update && apt_install "$1"; } || return 1
    keep_from_boot
}

# Daemons that came with this installation stay off at the next boot, too.
keep_from_boot() {
    command -v systemctl >/dev/null 2>&1 || return 0
    for pair in dovecot-core:dovecot.socket dovecot-core:dovecot.service postfix:postfix.service \
        pgbouncer:pgbouncer.service postgresql-common:postgresql.service haproxy:haproxy.service \
        nginx:nginx.service radicale:radicale.service fail2ban:fail2ban.service; do
        printf '%s\n' "$before" | grep -qxF "${pair%:*}" && continue
        systemctl list-unit-files "${pair#*:}" 2>/dev/null | grep -q enabled || continue
        as_root systemctl disable "${pair#*:}" >>"$work/log" 2>&1 || true
    done
}

explain_failure() {
    say 'apt-get failed; its log ends with:' >&2
    tail -n 15 "$work/log" >&2
    if grep -q 'Packages need to be removed' "$work/log"; then
        say 'another package (another mail server?) would have to be removed, which this script never does;' >&2
        say 'use a machine or a container without it' >&2
    fi
}

# ---- The two at once -------------------------------------------------------------------------------------

# Tells what apt is about until it ends.
report_progress() {
    seen=''
    while kill -0 "$1" 2>/dev/null; do
        line=$(grep -E '^(Get|Unpacking|Setting up)' "$work/log" | tail -n1 | cut -c1-70)
        if [ -n "$line" ] && [ "$line" != "$seen" ]; then say "apt: $line"; fi
        seen=$line
        sleep 1
    done
}

what=${1:-}
case $what in
    build | try | test | bench) shift ;;
    *) fail 'usage: tests/deps.sh build|try|test|bench [command...]' ;;
esac

check_rust
[ "$what" != test ] || check_components

missing=
needs_of_build
first=$missing
if [ "$what" != build ]; then "needs_of_$what"; fi

if [ -z "$missing" ]; then
    unpack_cyrus
    say 'nothing is missing'
    if [ $# -gt 0 ]; then exec "$@"; fi
    exit 0
fi

# shellcheck disable=SC2086 # a list of words
missing=" $(printf '%s\n' $missing | sort -u | paste -sd ' ')"
check_may_install
ask
work=$(mktemp -d)
: >"$work/log"
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
write_policy
if [ -n "${starts_daemons:-}" ]; then
    fail "$POLICY lets daemons start; nothing was installed, since they would listen on public ports"
fi

if [ -n "$first" ]; then
    say "apt:$first, which the build needs"
    install "$first" || { explain_failure; exit 1; }
fi

install "$missing" &
installing=$!
if [ $# -gt 0 ]; then
    built=0
    "$@" || built=$?
    [ "$built" = 0 ] || say 'the build failed; waiting for apt to end'
    report_progress "$installing"
else
    built=0
    report_progress "$installing"
fi
wait "$installing" || { explain_failure; exit 1; }
say "installed:$missing"
unpack_cyrus
exit "$built"
