/*
 * A load generator: one thread, epoll, HTTP/1.1 and HTTP/2, plain or over TLS.
 *
 *     load MODE --port N [--proto http1|h2c|tls|h2] [--path P] [--header "name: value"]...
 *          [--body TEXT] [--expect FILE] [--connections C] [--streams N]
 *          [--seconds S] [--count N] [--rate R] [--ramp S]
 *
 * unary    N exchanges at a time over C connections, each begun when the one before it on the
 *          same place has ended, for S seconds or N exchanges. With --rate so many a second,
 *          evenly; a late one counts from when it was due. Every answer has to be 200 and,
 *          byte for byte, what is in FILE.
 * streams  N event streams over C connections, begun evenly within S seconds (--ramp), read to
 *          their end. Every frame has to be whole and, if short, to have the right checksum.
 *          Says "steady" on a line of its own, with the events so far, when all have begun, and
 *          "ending" when the first one ends. That is where CPU is to be read.
 * stall    One stream, of which nothing is read once its first bytes are here. Says "stalled".
 *
 * The last line is JSON with the figures; times in microseconds. What goes wrong is in "errors",
 * and the first of it on standard error. It ends with its standard input.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "frames.h"

#define IN_BYTES (256 * 1024)
#define KEPT_BYTES 512 /* of a frame: enough for those that hold a time */
#define HEAD_BYTES 16384
#define WINDOW 0x7fffffffu

enum mode { UNARY, STREAMS, STALL };
enum proto { HTTP1, H2C, TLS, H2 };

struct series {
    uint32_t *ns100; /* tenths of microseconds */
    size_t size, room;
};

/* A place for one exchange at a time. */
struct place {
    struct conn *conn;
    bool busy, waiting; /* under way; has no room in the connection's window */
    uint64_t due, sent, first;
    int status;
    uint64_t bytes, events;
    bool last_frame; /* metadata: the stream is whole */
    uint32_t stream_id;
    /* a frame that is not whole yet */
    uint8_t kept[KEPT_BYTES];
    uint32_t frame_at, frame_size;
};

struct conn {
    int fd;
    SSL *ssl;
    bool connected, writing, ready;
    uint8_t *out;
    size_t out_size, out_sent, out_room;
    struct place *places;
    size_t place_count;
    /* HTTP/1.1 */
    char head[HEAD_BYTES];
    size_t head_size;
    enum { HEAD, LENGTH, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER } state;
    uint64_t left;
    char line[32];
    size_t line_size;
    /* HTTP/2 */
    uint8_t frame_head[9];
    size_t frame_head_size;
    uint8_t payload[HEAD_BYTES];
    size_t payload_size;
    uint32_t next_id, consumed, most_streams, under_way;
    int64_t window;
    uint32_t data_left, data_stream; /* of a DATA frame that is under way */
    uint8_t data_flags;
};

static enum mode mode;
static enum proto proto;
static int port, epoll_fd;
static const char *path = "/", *body = "{}";
static char headers[8192];
static const char *header_list[32];
static int header_count;
static char *expected;
static size_t expected_size;
static size_t connection_count = 1, stream_count = 1, most_count;
static double seconds, rate, ramp;
static SSL_CTX *tls;

static struct conn *conns;
static struct place *places;
static struct series total, first_byte, on_the_way;
static uint64_t done, begun, errors, late, all_bytes, all_events, started_ns, ended_ns, streams_begun;
static bool stopping, steady, ending, stalled;
static char request[16384];
static size_t request_size;

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void wrong(const char *what, long detail) {
    if (!errors++) fprintf(stderr, "load: %s (%ld)\n", what, detail);
}

/* Figures. */

static void note(struct series *s, uint64_t ns) {
    if (s->size == s->room) {
        s->room = s->room ? s->room * 2 : 65536;
        s->ns100 = realloc(s->ns100, s->room * sizeof *s->ns100);
        if (!s->ns100) die("realloc");
    }
    s->ns100[s->size++] = ns / 100 > UINT32_MAX ? UINT32_MAX : (uint32_t)(ns / 100);
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void show(const char *name, struct series *s) {
    qsort(s->ns100, s->size, sizeof *s->ns100, by_size);
    printf(",\"%s\":", name);
    if (!s->size) {
        printf("null");
        return;
    }
    printf("{\"count\":%zu,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f}", s->size,
           s->ns100[s->size / 2] / 10.0, s->ns100[s->size * 9 / 10] / 10.0,
           s->ns100[s->size * 99 / 100] / 10.0, s->ns100[s->size - 1] / 10.0);
}

static void report(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                 (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"done\":%llu,\"errors\":%llu,\"late\":%llu,\"bytes\":%llu,\"events\":%llu,"
           "\"seconds\":%.6f,\"cpu\":%.6f",
           (unsigned long long)done, (unsigned long long)errors, (unsigned long long)late,
           (unsigned long long)all_bytes, (unsigned long long)all_events,
           (double)((ended_ns ? ended_ns : now_ns()) - started_ns) / 1e9, cpu);
    show("latency", &total);
    show("first_byte", &first_byte);
    show("event", &on_the_way);
    printf("}\n");
    fflush(stdout);
    exit(errors ? 1 : 0);
}

static void say(const char *what) {
    printf("%s %llu\n", what, (unsigned long long)all_events);
    fflush(stdout);
}

/* Connections. */

static void want(struct conn *c, bool writing) {
    if (c->writing == writing) return;
    c->writing = writing;
    struct epoll_event e = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e)) die("epoll_ctl");
}

/* :returns: bytes; 0: later; -1: over. */
static ssize_t raw_write(struct conn *c, const void *data, size_t size) {
    if (c->ssl) {
        int n = SSL_write(c->ssl, data, (int)size);
        if (n > 0) return n;
        int why = SSL_get_error(c->ssl, n);
        return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? 0 : -1;
    }
    ssize_t n = send(c->fd, data, size, MSG_NOSIGNAL);
    return n >= 0 ? n : errno == EAGAIN ? 0 : -1;
}

static ssize_t raw_read(struct conn *c, void *data, size_t size) {
    if (c->ssl) {
        int n = SSL_read(c->ssl, data, (int)size);
        if (n > 0) return n;
        int why = SSL_get_error(c->ssl, n);
        return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? 0 : -1;
    }
    ssize_t n = recv(c->fd, data, size, 0);
    return n > 0 ? n : n < 0 && errno == EAGAIN ? 0 : -1;
}

static void flush(struct conn *c) {
    while (c->out_sent < c->out_size) {
        ssize_t n = raw_write(c, c->out + c->out_sent, c->out_size - c->out_sent);
        if (n < 0) {
            wrong("cannot write", errno);
            c->out_sent = c->out_size;
            break;
        }
        if (!n) {
            want(c, true);
            return;
        }
        c->out_sent += (size_t)n;
    }
    c->out_size = c->out_sent = 0;
    if (c->ready) want(c, false);
}

static void put(struct conn *c, const void *data, size_t size) {
    if (c->out_size + size > c->out_room) {
        c->out_room = (c->out_size + size) * 2;
        c->out = realloc(c->out, c->out_room);
        if (!c->out) die("realloc");
    }
    memcpy(c->out + c->out_size, data, size);
    c->out_size += size;
}

static void open_conn(struct conn *c) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    int on = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) die("connect");
    if (tls) {
        c->ssl = SSL_new(tls);
        SSL_set_fd(c->ssl, c->fd);
        SSL_set_connect_state(c->ssl);
    }
    c->writing = true;
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e)) die("epoll_ctl");
}

/* HTTP/2, as little of it as a client of one request needs. */

static void h2_frame(struct conn *c, uint8_t type, uint8_t flags, uint32_t id, const void *data,
                     size_t size) {
    uint8_t head[9] = {(uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size, type, flags};
    put32(head + 5, id);
    put(c, head, 9);
    if (size) put(c, data, size);
}

static void h2_begin(struct conn *c) {
    static const uint8_t settings[] = {
        0, 1, 0, 0, 0, 0,             /* no dynamic table */
        0, 2, 0, 0, 0, 0,             /* no push */
        0, 4, 0x7f, 0xff, 0xff, 0xff, /* as large a window as there is */
    };
    uint8_t more[4];
    put32(more, WINDOW - 65535);
    put(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    h2_frame(c, 4, 0, 0, settings, sizeof settings);
    h2_frame(c, 8, 0, 0, more, 4);
    c->next_id = 1;
    c->window = 65535;
    c->most_streams = 100; /* until the server says so */
}

static size_t h2_literal(uint8_t *to, const char *text, size_t size, bool lower) {
    size_t at = 0;
    if (size < 127) {
        to[at++] = (uint8_t)size;
    } else {
        size_t rest = size - 127;
        to[at++] = 127;
        for (; rest >= 128; rest /= 128) to[at++] = (uint8_t)(rest % 128 + 128);
        to[at++] = (uint8_t)rest;
    }
    for (size_t i = 0; i < size; i++)
        to[at++] = (uint8_t)(lower && text[i] >= 'A' && text[i] <= 'Z' ? text[i] + 32 : text[i]);
    return at;
}

static size_t h2_request_head(uint8_t *to) {
    char text[64];
    size_t at = 0;
    to[at++] = 0x83;                        /* :method POST */
    to[at++] = proto == H2 ? 0x87 : 0x86;   /* :scheme */
    to[at++] = 0x04, at += h2_literal(to + at, path, strlen(path), false);
    to[at++] = 0x01;
    at += h2_literal(to + at, text, (size_t)sprintf(text, "127.0.0.1:%d", port), false);
    to[at++] = 0x0f, to[at++] = 28 - 15; /* content-length */
    at += h2_literal(to + at, text, (size_t)sprintf(text, "%zu", strlen(body)), false);
    for (int i = 0; i < header_count; i++) {
        const char *colon = strchr(header_list[i], ':'), *value = colon + 1;
        while (*value == ' ') value++;
        to[at++] = 0x00;
        at += h2_literal(to + at, header_list[i], (size_t)(colon - header_list[i]), true);
        at += h2_literal(to + at, value, strlen(value), false);
    }
    return at;
}

/* Exchanges. */

static bool multiplexed(void) { return proto == H2C || proto == H2; }

static void send_request(struct place *p) {
    struct conn *c = p->conn;
    size_t size = strlen(body);
    if (multiplexed()) {
        if (!c->ready || c->window < (int64_t)size || c->under_way >= c->most_streams) {
            p->waiting = true;
            return;
        }
        c->window -= (int64_t)size;
        c->under_way++;
        p->stream_id = c->next_id;
        c->next_id += 2;
        h2_frame(c, 1, 4, p->stream_id, request, request_size);
        h2_frame(c, 0, 1, p->stream_id, body, size);
    } else {
        put(c, request, request_size);
    }
    p->waiting = false;
    p->sent = now_ns();
    if (!p->due) p->due = p->sent;
    flush(c);
}

static void begin(struct place *p, uint64_t due) {
    p->busy = true;
    p->due = due;
    p->first = p->bytes = p->events = p->frame_at = p->frame_size = 0;
    p->last_frame = false;
    p->status = 0;
    begun++;
    send_request(p);
}

static void place_done(struct place *p) {
    uint64_t now = now_ns();
    p->busy = false;
    if (multiplexed()) p->conn->under_way--;
    if (p->status != 200) wrong("not 200 but", p->status);
    else if (mode == UNARY && expected && p->bytes != expected_size) wrong("answer of bytes", (long)p->bytes);
    else if (mode == STREAMS && (p->frame_at || !p->last_frame)) wrong("stream is not whole", (long)p->bytes);
    note(&total, now - p->due);
    done++;
    ended_ns = now;
    if (mode == STREAMS) {
        if (!ending) ending = true, say("ending");
        if (done == stream_count) report();
    } else if (!stopping && !rate && (!most_count || begun < most_count)) {
        begin(p, 0);
    }
}

static void frame_done(struct place *p) {
    uint64_t now = now_ns();
    p->events++, all_events++;
    if (p->frame_size > KEPT_BYTES) return;
    if (crc32_of(0, p->kept, p->frame_size - 4) != get32(p->kept + p->frame_size - 4))
        wrong("checksum of a frame", (long)p->events);
    /* The time is the last thing of a payload: @, its digits, "} and the checksum. */
    size_t stamp = p->frame_size - 6 - STAMP_DIGITS;
    if (p->frame_size > 64 && p->kept[stamp - 1] == '@')
        note(&on_the_way, now - strtoull((const char *)p->kept + stamp, NULL, 10));
    else if (p->frame_size > 40 && !memcmp(p->kept + 12, "\x0b:event-type\x07\x00\x08metadata", 23))
        p->last_frame = true;
}

static void frames(struct place *p, const uint8_t *data, size_t size) {
    while (size) {
        size_t rest = p->frame_at < 4 ? 4 - p->frame_at : p->frame_size - p->frame_at;
        size_t n = size < rest ? size : rest;
        if (p->frame_at < KEPT_BYTES) {
            size_t room = KEPT_BYTES - p->frame_at;
            memcpy(p->kept + p->frame_at, data, n < room ? n : room);
        }
        p->frame_at += (uint32_t)n, data += n, size -= n;
        if (p->frame_at == 4) {
            p->frame_size = get32(p->kept);
            if (p->frame_size < 16) {
                wrong("frame of bytes", p->frame_size);
                report();
            }
        } else if (p->frame_at > 4 && p->frame_at == p->frame_size) {
            frame_done(p);
            p->frame_at = 0;
        }
    }
}

static void take_body(struct place *p, const uint8_t *data, size_t size) {
    if (!size) return;
    if (!p->first) {
        p->first = now_ns();
        note(&first_byte, p->first - p->due);
        if (mode == STREAMS && ++streams_begun == stream_count) steady = true, say("steady");
        if (mode == STALL) stalled = true, say("stalled");
    }
    if (mode == UNARY && expected &&
        (p->bytes + size > expected_size || memcmp(expected + p->bytes, data, size)))
        wrong("another answer than expected, at byte", (long)p->bytes);
    if (mode == STREAMS && p->status == 200) frames(p, data, size);
    p->bytes += size;
    all_bytes += size;
}

/* HTTP/1.1. */

static void h1_head(struct conn *c) {
    struct place *p = c->places;
    p->status = atoi(c->head + 9);
    c->head[c->head_size] = 0;
    c->state = LENGTH;
    c->left = 0;
    for (char *line = strstr(c->head, "\r\n") + 2; *line != '\r'; line = strstr(line, "\r\n") + 2) {
        if (!strncasecmp(line, "content-length:", 15)) c->left = strtoull(line + 15, NULL, 10);
        if (!strncasecmp(line, "transfer-encoding: chunked", 26)) c->state = CHUNK_SIZE, c->line_size = 0;
        if (!strncasecmp(line, "connection: close", 17)) wrong("the server closes a connection", p->status);
    }
    c->head_size = 0;
}

static void h1_data(struct conn *c, uint8_t *data, size_t size) {
    struct place *p = c->places;
    while (size && !stalled) {
        size_t n;
        switch (c->state) {
        case HEAD:
            if (!p->busy) {
                wrong("bytes nobody asked for", data[0]);
                return;
            }
            for (n = 0; n < size && c->state == HEAD;) {
                if (c->head_size == HEAD_BYTES - 1) {
                    wrong("a head too long", (long)c->head_size);
                    report();
                }
                c->head[c->head_size++] = (char)data[n++];
                if (data[n - 1] == '\n' && c->head_size > 3 &&
                    !memcmp(c->head + c->head_size - 4, "\r\n\r\n", 4))
                    h1_head(c);
            }
            break;
        case LENGTH:
        case CHUNK:
            n = size < c->left ? size : (size_t)c->left;
            take_body(p, data, n);
            c->left -= n;
            if (c->state == CHUNK && !c->left) c->state = CHUNK_END;
            break;
        case CHUNK_END:
            n = 1;
            if (data[0] == '\n') c->state = CHUNK_SIZE, c->line_size = 0;
            break;
        case CHUNK_SIZE:
            n = 1;
            if (data[0] == '\n') {
                c->line[c->line_size] = 0;
                c->left = strtoull(c->line, NULL, 16);
                c->state = c->left ? CHUNK : TRAILER;
                c->line_size = 0;
            } else if (c->line_size < sizeof c->line - 1) {
                c->line[c->line_size++] = (char)data[0];
            }
            break;
        default: /* TRAILER */
            n = 1;
            if (data[0] == '\n') {
                if (c->line_size <= 1) c->state = LENGTH, c->left = 0;
                c->line_size = 0;
            } else {
                c->line_size++;
            }
        }
        data += n, size -= n;
        if (c->state == LENGTH && !c->left) {
            c->state = HEAD;
            place_done(p);
        }
    }
}

/* HTTP/2. */

static struct place *h2_place(struct conn *c, uint32_t id) {
    for (size_t i = 0; i < c->place_count; i++)
        if (c->places[i].busy && c->places[i].stream_id == id) return c->places + i;
    return NULL;
}

static void h2_resume(struct conn *c) {
    for (size_t i = 0; i < c->place_count; i++)
        if (c->places[i].waiting) send_request(c->places + i);
}

static void h2_control(struct conn *c, uint8_t type, uint8_t flags, uint32_t id, uint8_t *data,
                       size_t size) {
    struct place *p;
    switch (type) {
    case 1: /* HEADERS */
        p = h2_place(c, id);
        if (!p) return;
        if (flags & 0x08) data++, size--;
        if (flags & 0x20) data += 5, size -= 5;
        while (size && (*data & 0xe0) == 0x20) data++, size--; /* size of the dynamic table */
        if (!p->status) p->status = size && *data == 0x88 ? 200 : size ? *data : -1;
        if (flags & 1) place_done(p);
        break;
    case 3: /* RST_STREAM */
        p = h2_place(c, id);
        if (p) wrong("a stream was reset", (long)get32(data)), p->status = -1, place_done(p);
        break;
    case 4: /* SETTINGS */
        if (flags & 1) return;
        for (size_t at = 0; at + 6 <= size; at += 6)
            if (data[at] == 0 && data[at + 1] == 3) c->most_streams = get32(data + at + 2);
        h2_frame(c, 4, 1, 0, NULL, 0);
        c->ready = true;
        h2_resume(c);
        break;
    case 6: /* PING */
        if (!(flags & 1)) h2_frame(c, 6, 1, 0, data, size);
        break;
    case 7: /* GOAWAY */
        wrong("the server says goodbye, error", (long)get32(data + 4));
        break;
    case 8: /* WINDOW_UPDATE */
        if (!id) c->window += get32(data) & WINDOW, h2_resume(c);
        break;
    }
}

static void h2_data(struct conn *c, uint8_t *data, size_t size) {
    while (size && !stalled) {
        if (c->frame_head_size < 9) {
            c->frame_head[c->frame_head_size++] = *data++, size--;
            if (c->frame_head_size < 9) continue;
            c->payload_size = 0;
            c->data_left = (uint32_t)c->frame_head[0] << 16 | (uint32_t)c->frame_head[1] << 8 | c->frame_head[2];
            c->data_flags = c->frame_head[4];
            c->data_stream = get32(c->frame_head + 5) & WINDOW;
        }
        uint8_t type = c->frame_head[3];
        size_t n = size < c->data_left ? size : c->data_left;
        if (type == 0) { /* DATA; padding is nobody's habit */
            if (c->data_flags & 0x08) wrong("padded data", (long)c->data_left);
            struct place *p = h2_place(c, c->data_stream);
            c->consumed += (uint32_t)n;
            c->data_left -= (uint32_t)n;
            if (p) take_body(p, data, n);
            if (!c->data_left) {
                c->frame_head_size = 0;
                if (p && c->data_flags & 1) place_done(p);
            }
            if (c->consumed > WINDOW / 2) {
                uint8_t more[4];
                put32(more, c->consumed);
                h2_frame(c, 8, 0, 0, more, 4);
                c->consumed = 0;
            }
        } else {
            if (c->payload_size + n > HEAD_BYTES) {
                wrong("a long frame of type", type);
                report();
            }
            memcpy(c->payload + c->payload_size, data, n);
            c->payload_size += n;
            c->data_left -= (uint32_t)n;
            if (!c->data_left) {
                c->frame_head_size = 0;
                h2_control(c, type, c->data_flags, c->data_stream, c->payload, c->payload_size);
            }
        }
        data += n, size -= n;
    }
    h2_resume(c);
    if (c->out_size && !c->writing) flush(c);
}

/* The loop. */

static void connected(struct conn *c) {
    if (c->ssl) {
        int n = SSL_do_handshake(c->ssl);
        if (n <= 0) {
            int why = SSL_get_error(c->ssl, n);
            if (why == SSL_ERROR_WANT_READ) {
                want(c, false);
                return;
            }
            if (why == SSL_ERROR_WANT_WRITE) return;
            fprintf(stderr, "load: TLS: %s\n", ERR_error_string(ERR_get_error(), NULL));
            exit(1);
        }
        if (proto == H2) {
            const unsigned char *chosen;
            unsigned length;
            SSL_get0_alpn_selected(c->ssl, &chosen, &length);
            if (length != 2 || memcmp(chosen, "h2", 2)) {
                fprintf(stderr, "load: the server does not speak HTTP/2\n");
                exit(1);
            }
        }
    }
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) errno = error, die("connect");
    c->connected = true;
    if (multiplexed()) {
        h2_begin(c);
    } else {
        c->ready = true;
        for (size_t i = 0; i < c->place_count; i++)
            if (c->places[i].waiting) send_request(c->places + i);
    }
    flush(c);
    want(c, c->out_size > 0);
}

static void readable(struct conn *c) {
    static uint8_t data[IN_BYTES];
    for (;;) {
        ssize_t n = raw_read(c, data, sizeof data);
        if (n < 0) {
            bool busy = false;
            for (size_t i = 0; i < c->place_count; i++) busy |= c->places[i].busy;
            if (!busy && mode == STREAMS) { /* none of its places is used again */
                epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
                return;
            }
            if (busy) wrong("the server closed a connection under way", errno), report();
            wrong("the server closed an idle connection", errno), report();
        }
        if (!n) return;
        if (multiplexed()) h2_data(c, data, (size_t)n);
        else h1_data(c, data, (size_t)n);
        if (stalled) {
            epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
            return;
        }
        /* Of plain TCP what there is more of will be said by epoll. */
        if (!c->ssl && (size_t)n < sizeof data) return;
    }
}

static void start_place(struct place *p, uint64_t due) {
    if (!p->conn->ready) {
        p->busy = p->waiting = true;
        p->due = due;
        p->status = 0;
        begun++;
        return;
    }
    begin(p, due);
}

static void options(int count, char **args) {
    if (count < 2) goto usage;
    if (!strcmp(args[1], "unary")) mode = UNARY;
    else if (!strcmp(args[1], "streams")) mode = STREAMS;
    else if (!strcmp(args[1], "stall")) mode = STALL;
    else goto usage;
    for (int i = 2; i + 1 < count; i += 2) {
        const char *name = args[i], *value = args[i + 1];
        if (!strcmp(name, "--port")) port = atoi(value);
        else if (!strcmp(name, "--path")) path = value;
        else if (!strcmp(name, "--body")) body = value;
        else if (!strcmp(name, "--connections")) connection_count = strtoul(value, NULL, 10);
        else if (!strcmp(name, "--streams")) stream_count = strtoul(value, NULL, 10);
        else if (!strcmp(name, "--count")) most_count = strtoul(value, NULL, 10);
        else if (!strcmp(name, "--seconds")) seconds = atof(value);
        else if (!strcmp(name, "--rate")) rate = atof(value);
        else if (!strcmp(name, "--ramp")) ramp = atof(value);
        else if (!strcmp(name, "--header") && header_count < 32 && strchr(value, ':')) {
            header_list[header_count++] = value;
            strncat(headers, value, sizeof headers - strlen(headers) - 3);
            strcat(headers, "\r\n");
        } else if (!strcmp(name, "--proto")) {
            if (!strcmp(value, "http1")) proto = HTTP1;
            else if (!strcmp(value, "h2c")) proto = H2C;
            else if (!strcmp(value, "tls")) proto = TLS;
            else if (!strcmp(value, "h2")) proto = H2;
            else goto usage;
        } else if (!strcmp(name, "--expect")) {
            FILE *file = fopen(value, "rb");
            if (!file) die(value);
            expected = malloc(1 << 20);
            expected_size = fread(expected, 1, 1 << 20, file);
            fclose(file);
        } else goto usage;
    }
    if (!port || !connection_count || stream_count < connection_count) goto usage;
    if (proto == HTTP1 || proto == TLS) connection_count = stream_count;
    return;
usage:
    fprintf(stderr, "load: see the head of load.c for its options\n");
    exit(2);
}

int main(int count, char **args) {
    options(count, args);
    crc_init();
    signal(SIGPIPE, SIG_IGN);
    if (proto == TLS || proto == H2) {
        tls = SSL_CTX_new(TLS_client_method());
        SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        if (proto == H2) SSL_CTX_set_alpn_protos(tls, (const unsigned char *)"\2h2", 3);
    }
    if (multiplexed())
        request_size = h2_request_head((uint8_t *)request);
    else
        request_size = (size_t)snprintf(
            request, sizeof request,
            "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%sContent-Length: %zu\r\n\r\n%s", path, port,
            headers, strlen(body), body);

    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &epoll_fd};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &e)) die("standard input");
    conns = calloc(connection_count, sizeof *conns);
    places = calloc(stream_count, sizeof *places);
    if (!conns || !places) die("calloc");
    size_t next = 0;
    for (size_t i = 0; i < connection_count; i++) {
        size_t last = stream_count * (i + 1) / connection_count;
        conns[i].places = places + next;
        conns[i].place_count = last - next;
        while (next < last) places[next++].conn = conns + i;
    }

    started_ns = now_ns();
    if (rate && !most_count) most_count = (size_t)(rate * seconds);
    uint64_t until = seconds && !rate ? started_ns + (uint64_t)(seconds * 1e9) : UINT64_MAX;
    uint64_t apart = rate ? (uint64_t)(1e9 / rate) : 0;
    if (mode == STREAMS && ramp) apart = (uint64_t)(ramp * 1e9 / (double)stream_count);
    size_t opened = 0, started = 0, idle_from = 0;
    if (mode == UNARY || !ramp)
        for (; opened < connection_count; opened++) open_conn(conns + opened);
    if (mode == UNARY && !rate)
        for (; started < stream_count && (!most_count || started < most_count); started++)
            start_place(places + started, 0);
    if (mode != UNARY && !ramp)
        for (; started < stream_count; started++) start_place(places + started, 0);

    struct epoll_event events[256];
    for (;;) {
        uint64_t now = now_ns(), wake = until;
        if (mode == STREAMS)
            for (; started < stream_count; started++) {
                uint64_t due = started_ns + started * apart;
                if (due > now) {
                    wake = due;
                    break;
                }
                struct conn *c = places[started].conn;
                for (; opened <= (size_t)(c - conns); opened++) open_conn(conns + opened);
                start_place(places + started, 0);
            }
        if (mode == UNARY && rate)
            while (begun < most_count) {
                uint64_t due = started_ns + 200000000u + begun * apart;
                if (due > now) {
                    wake = due;
                    break;
                }
                size_t tried = 0;
                while (tried < stream_count && places[idle_from].busy)
                    idle_from = (idle_from + 1) % stream_count, tried++;
                if (tried == stream_count) break; /* all are busy: it will be late */
                if (now - due > 1000000) late++;
                start_place(places + idle_from, due);
            }
        if (mode == UNARY) {
            if (now >= until) stopping = true;
            if ((stopping || (most_count && begun >= most_count)) && done == begun) report();
        }
        struct timespec wait = {0};
        struct timespec *limit = NULL;
        if (wake != UINT64_MAX && !stopping) {
            uint64_t ns = wake > now ? wake - now : 0;
            wait.tv_sec = (time_t)(ns / 1000000000u), wait.tv_nsec = (long)(ns % 1000000000u);
            limit = &wait;
        }
        int ready = epoll_pwait2(epoll_fd, events, 256, limit, NULL);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr == &epoll_fd) {
                char byte;
                if (read(STDIN_FILENO, &byte, 1) <= 0) report();
                continue;
            }
            struct conn *c = events[i].data.ptr;
            if (!c->connected) {
                if (events[i].events & (EPOLLERR | EPOLLHUP)) {
                    int error = 0;
                    socklen_t size = sizeof error;
                    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
                    errno = error, die("connect");
                }
                connected(c);
                continue;
            }
            if (events[i].events & EPOLLOUT) flush(c);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
        }
    }
}
